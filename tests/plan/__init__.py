"""Tests of `quintic plan`."""
