"""How well the matcher of tasks finds what people mean: paraphrased queries of our own, half of them held out."""
