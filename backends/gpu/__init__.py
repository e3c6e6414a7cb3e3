"""What the GPU backends share: orchestration, schedules of products, bundles, the run time."""
