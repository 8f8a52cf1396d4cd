"""A LLaVA of 576 vision tokens, trained on objects and signs in front of photographs.

``scenes`` are ``things`` before ``photographs``; there are ``questions`` about them.  ``model``
begins with the bundled tiny LLaVA, and ``training`` goes on with it, at several resolutions.
"""
