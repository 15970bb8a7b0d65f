"""ONNX files in and out: mapped, checked before they are believed, nothing of them lost."""
