"""What everything else rests on: errors, files, drawings, the command line; imports nothing of ours."""
