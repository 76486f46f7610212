"""What is written to ONNX here, in place of what tf2onnx makes of it."""
