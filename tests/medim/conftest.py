"""Stands here so that pytest puts this folder on the path: the tests in the folders below use tiny_medim too."""
