"""Generators and critics. They know shapes and nothing of losses: adding one is a class and a YAML.

A generator is built with ``latent_dim`` and ``shape`` (of one image, (channels, height, width)) and maps latents
(batch, latent_dim) to images (batch, *shape), of which real ones are in [-1, 1]; a critic is built with ``shape`` and
maps images to scores (batch,).
"""
