"""A really trained small diffusion transformer of handwritten digits: pipeline, weights, training, judge."""
