"""What is changed in a pretrained language model so that it speaks item ids: one readable file each."""
