"""A really trained diffusion transformer of 256 tokens: crops of photographs, pipeline, weights, training, judge."""
