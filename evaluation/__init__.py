"""What measures a trained run: figures of merit, baselines, samples against real slices, pictures, the report."""
