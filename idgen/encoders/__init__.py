"""From face crops to vectors: encoders, and ONNX files as differentiable torch modules."""
