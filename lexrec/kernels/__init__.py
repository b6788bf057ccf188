"""Fused operations: one public function each, a plain PyTorch reference beside the fast path."""
