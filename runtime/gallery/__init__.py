"""A gallery: embeddings of images with their keys and patients, searched for matches.

Names are imported when they are first used: `gallery.storage` alone brings neither numpy nor hnswlib.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
