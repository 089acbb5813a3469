"""Images out of an archive (a PACS) into a gallery: the one part of the runtime that is a network client.

Nothing in here is imported unless a command asks for an archive.
"""
