"""Files of any kind: atomic writes, the cache folder, one reader of JSON, safetensors metadata, progress bars.

May import nothing but ``errors``.
"""
