"""TensorRT: the driver asked first, targets, engines built from a bundle's graphs, and their preflight."""
