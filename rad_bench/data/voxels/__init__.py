"""An embedded Minecraft-like world of blocks: terrain, textures, a ray caster, and an explorer. No files."""
