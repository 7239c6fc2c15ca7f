"""What the colours of all pictures mean, and how large the pictures are."""

OURS = "#1f559c"
OURS_ON_OTHER_SEEDS = "#4d94db"
OURS_WITH_DEFAULT = "#9cc8f0"
SB3_CONTRIB = "#e07b1a"
PPO = "#3a9a5b"
#: Other algorithms of this package, where they stand beside its TRPO
MEMBER, OTHER_MEMBER = "#8a3fa0", "#d9548f"
#: TRPO where it is what others are compared with
REFERENCE = "#7f7f7f"
#: Of the time of learn(): never a library's
ENVIRONMENT, COLLECTION, POLICY_UPDATE, CRITIC_FIT = "#c9c9c9", "#7a6cb8", "#b5406f", "#e6b566"

# Inches and dots an inch: text is to be readable where a page shows the picture 700 pixels wide.
WIDTH, DPI = 8.0, 150
