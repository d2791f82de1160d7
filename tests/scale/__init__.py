"""Tests of quintic scale."""
