"""How the shipped base was made: dense targets for the towers first, then captions and answers for the language model."""
