"""What is measured beyond one benchmark: methods at equal cost, sweeps, ablations, drift from the dense model, the released fit."""
