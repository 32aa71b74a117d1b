"""Anthropic's Messages API for engines that have only chat completions: PURE translations, there and back."""
