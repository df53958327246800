"""The conformance suite: does a backend compute what core defines?"""
