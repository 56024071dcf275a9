"""What the programs that train a LoRA or an adapter share: batches, LoRA, memory, samples."""
