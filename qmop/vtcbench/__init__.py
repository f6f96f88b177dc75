"""VTCBench of the QMoP paper: what a visual-token compressor loses, over five dimensions.

Not to be confused with VTC-Bench (down-sampling as a filter over other benchmarks) nor with the VTCBench on
long text rendered to page images.
"""
