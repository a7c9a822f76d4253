"""Networks as files for ONNX Runtime and OpenVINO, each compared with its network before it is kept."""
