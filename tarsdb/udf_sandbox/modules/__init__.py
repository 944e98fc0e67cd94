"""Modules as bytes: read the outline of untrusted ones, refuse bombs, make loops, compile.

Nothing here runs a module.
"""
