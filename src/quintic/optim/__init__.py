"""Gradients to updates: orthogonalisation, Muon, routing and schedule."""
