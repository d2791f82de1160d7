"""Gradients to updates: orthogonalisation, Muon, parameter groups and schedule."""
