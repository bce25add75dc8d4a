"""What the three training scripts share; the loops themselves are theirs.

    run          a run and what may happen to it: processes, resuming, log, signals, skipped steps, saving
    optim        learning rate, AdamW and Muon, the average of the weights
    batches      which image a step sees and everything random about it; read ahead by threads
    cost         operations and memory of a step
    latents      posteriors of the VAE stored beside the packed images
    curves       log.jsonl of several runs in one picture
"""
