"""Learned samplers in closed form: times and coefficients of few calls, fitted to the trajectories of a teacher."""
