"""Untrained towers, each kind alone, which ours builds inside whole networks only."""

from transformers import Blip2VisionModel, BlipVisionModel, ViTModel

from medim.baselines.picture_encoders import tower_config

MODELS = {"blip_vision_model": BlipVisionModel, "blip_2_vision_model": Blip2VisionModel, "vit": ViTModel}


def build_tower(kind, sizes):
    options = {"add_pooling_layer": False} if kind == "vit" else {}
    return MODELS[kind](tower_config(kind, sizes), **options)
