"""Tests that need Hyperlight: here where KVM runs it, else in an emulated machine."""
