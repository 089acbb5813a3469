"""Kinds of phantom: each module draws one part of the body onto a film, its shape given by the identity's random numbers."""
