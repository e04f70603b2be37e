"""Plain data of the project: blocks, contract, schedule, program, bundle and their file formats. No heavy imports."""
