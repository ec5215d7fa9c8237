"""Records and SavedModels, by TensorFlow, which no other folder imports."""
