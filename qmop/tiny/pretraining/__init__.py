"""How the shipped base was made: dense targets for the towers, then captions and answers for the language model."""
