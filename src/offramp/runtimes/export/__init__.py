"""Making graphs of a trained run: torch stage -> ONNX graph -> fused -> quantised -> checked against torch."""
