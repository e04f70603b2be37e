"""Learned samplers by gradient: coefficients and times that move through the whole chain of calls."""
