"""How the reference models were made: data, classifier, recipe and evaluation on 8x8 handwritten digits."""
