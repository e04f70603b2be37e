"""TensorRT and TensorRT for RTX: the CUDA driver, the libraries, engine builds and the check before engines load."""
