"""Writes a slide as an Aperio scanner does: a tiled TIFF that says "Aperio" and its micrometres a pixel."""

import struct
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

TILE = 64


def write_slide(path: Path, pixels: NDArray[np.uint8], mpp: float | None) -> None:
    """(H, W, 3) uint8 -> an uncompressed .svs of one level."""
    height, width = pixels.shape[:2]
    across, down = -(-width // TILE), -(-height // TILE)
    padded = np.full((down * TILE, across * TILE, 3), 255, np.uint8)
    padded[:height, :width] = pixels
    tiles = [
        padded[y * TILE : (y + 1) * TILE, x * TILE : (x + 1) * TILE].tobytes()
        for y in range(down)
        for x in range(across)
    ]
    words = f"Aperio Image Library v1\r\n{width}x{height} -> {TILE}x{TILE}|AppMag = 20"
    words += "" if mpp is None else f"|MPP = {mpp}"
    text = words.encode() + b"\0"
    kinds = {258: 3, 270: 2, 324: 4, 325: 4}  # of the values that stand behind the directory
    small = {254: (4, 0), 256: (4, width), 257: (4, height), 259: (3, 1), 262: (3, 2), 277: (3, 3), 284: (3, 1),
             322: (3, TILE), 323: (3, TILE)}  # fmt: skip
    head = 8 + 2 + 12 * (len(small) + len(kinds)) + 4
    sizes = {258: 6, 270: len(text), 324: 4 * len(tiles), 325: 4 * len(tiles)}
    places, offset = {}, head
    for tag, size in sizes.items():
        places[tag] = offset
        offset += size + size % 2
    starts = [offset + number * len(tiles[0]) for number in range(len(tiles))]
    bodies = {258: struct.pack("<3H", 8, 8, 8), 270: text, 324: struct.pack(f"<{len(tiles)}I", *starts),
              325: struct.pack(f"<{len(tiles)}I", *map(len, tiles))}  # fmt: skip
    counts = {258: 3, 270: len(text), 324: len(tiles), 325: len(tiles)}
    entries = []
    for tag in sorted([*small, *sizes]):
        if tag in small:
            kind, value = small[tag]
            entries.append(struct.pack("<HHII", tag, kind, 1, value))
        else:
            inline = len(bodies[tag]) <= 4
            value = struct.unpack("<I", bodies[tag].ljust(4, b"\0"))[0] if inline else places[tag]
            entries.append(struct.pack("<HHII", tag, kinds[tag], counts[tag], value))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(b"II*\0" + struct.pack("<IH", 8, len(entries)) + b"".join(entries) + struct.pack("<I", 0))
        for tag in sizes:
            file.write(bodies[tag] + b"\0" * (len(bodies[tag]) % 2))
        file.write(b"".join(tiles))
