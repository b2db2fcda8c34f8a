#!/usr/bin/env python
"""Ask an exported ONNX file without torch: python scripts/onnx_predict.py FILE.onnx PHOTO... (onnxruntime, numpy and pillow alone)."""

import json
import sys

import numpy as np
import onnxruntime
from PIL import Image, ImageOps

session = onnxruntime.InferenceSession(sys.argv[1], providers=["CPUExecutionProvider"])
told = session.get_modelmeta().custom_metadata_map
classes, how = json.loads(told["classes"]), json.loads(told["preparation"])
for name in sys.argv[2:]:
    image = ImageOps.exif_transpose(Image.open(name)).convert("RGB")
    if how:  # else the file takes the whole picture, and prepares it itself
        (height, width), short = how["size"], min(image.size)
        sides = (width, height) if how["squash"] else tuple(how["resize"] * side // short for side in image.size)
        image = image.resize(sides, Image.Resampling[how["interpolation"].upper()])
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        image = image.crop((left, top, left + width, top + height))
    pixels = np.asarray(image)
    inputs = {"pixels": pixels.transpose(2, 0, 1)[None]} if how else {"picture": pixels}
    probabilities = session.run(["probabilities"], inputs)[0][0]
    print(f"{name}: {classes[probabilities.argmax()]} {probabilities.max():.4f}")
