"""Training from file lists: an autoencoder, stage 1 on its latents, stage 2 on images. `python -m lcmem_onnx.models.train`."""
