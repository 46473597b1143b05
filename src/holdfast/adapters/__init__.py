"""Floor 3: carriers. One foreign library each, strangers to one another.

Import an adapter by its full path, for example `holdfast.adapters.asgi`; nothing is imported for
libraries that are not used.
"""
