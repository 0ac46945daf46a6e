"""What outlives a call: checkpoints that describe their architecture, exports, copies, snapshots."""
