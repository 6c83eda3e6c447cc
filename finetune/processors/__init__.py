"""From images to a model's input as other programs do it, called as theirs are."""
