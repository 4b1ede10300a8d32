-- Server mod: a camera that is led by the commands of another process.
--
-- Reads commands from the FIFO `commands` in the world's folder, one a line, and writes an answer to each to `answers`:
--   ground X Z R              heights at which one can stand, for z in Z-R..Z+R and x in X-R..X+R; nan: nowhere
--   place X Y Z NODE ...      puts nodes there; answers "placed"
--   send X Y Z                sends what one can see from there to the client; answers "sent"
--   view X Y Z YAW PITCH      moves the eye there; answers "view" and what the client reports when it is drawn
-- The next command is read only after the answer, so the world and the camera stand still in between.

local BOTTOM, TOP = -32, 111 -- heights that are made
local LOW, HIGH = -16, 63 -- heights in which ground is looked for
local MARGIN = 48 -- nodes around the ground that are made: more than one sees
local BLOCK = 16 -- nodes: the side of what is sent at a time
local RESEND = 2 -- seconds; what is sent before the client has joined the channel is lost

local channel = minetest.mod_channel_join("rad_bench")
local commands, answers, player, next_command
local number, asked, silent = 0, nil, 0

local function answer(text)
	answers:write(text .. "\n")
	answers:flush()
	minetest.after(0, next_command)
end

local function node_at(x, y, z)
	local name = minetest.get_node({x = x, y = y, z = z}).name
	return minetest.registered_nodes[name] or {walkable = true, groups = {}}, name
end

local function is_free(x, y, z) -- for a body that stands on y; the eye is in the second node above it
	local _, at_eye = node_at(x, y + 2, z)
	return at_eye == "air" and not node_at(x, y + 1, z).walkable and not node_at(x, y + 3, z).walkable
end

local function standing_height(x, z)
	for y = HIGH, LOW, -1 do
		local node, name = node_at(x, y, z)
		local is_plant = node.groups.tree or node.groups.leaves or name == "default:snow" -- a layer of it
		if name == "ignore" or node.liquidtype ~= "none" then
			return "nan"
		elseif node.walkable and not is_plant then
			return (node.drawtype == "normal" and is_free(x, y, z)) and y + 0.5 or "nan"
		end
	end
	return "nan"
end

local function ground(x, z, radius)
	local reach = radius + MARGIN
	local low, high = {x = x - reach, y = BOTTOM, z = z - reach}, {x = x + reach, y = TOP, z = z + reach}
	minetest.emerge_area(low, high, function(_, _, left)
		if left > 0 then return end
		local heights = {}
		for row = z - radius, z + radius do
			for column = x - radius, x + radius do
				heights[#heights + 1] = standing_height(column, row)
			end
		end
		answer("ground " .. table.concat(heights, " "))
	end)
end

local function place(words)
	for i = 2, #words, 4 do
		minetest.set_node({x = words[i], y = words[i + 1], z = words[i + 2]}, {name = words[i + 3]})
	end
	answer("placed")
end

local function send(x, y, z)
	local low = {x = x - MARGIN, y = math.max(y - MARGIN, BOTTOM), z = z - MARGIN}
	for block_x = math.floor(low.x / BLOCK), math.floor((x + MARGIN) / BLOCK) do
		for block_y = math.floor(low.y / BLOCK), math.floor(math.min(y + MARGIN, TOP) / BLOCK) do
			for block_z = math.floor(low.z / BLOCK), math.floor((z + MARGIN) / BLOCK) do
				player:send_mapblock({x = block_x, y = block_y, z = block_z})
			end
		end
	end
	answer("sent")
end

local function show()
	silent = 0
	player:set_pos({x = asked.x, y = asked.y - player:get_properties().eye_height, z = asked.z})
	player:set_look_horizontal(asked.yaw)
	player:set_look_vertical(-asked.pitch) -- the engine's grows downwards
	channel:send_all(("%d %.6f %.6f %.6f %.7f %.7f"):format(number, asked.x, asked.y, asked.z, asked.yaw, asked.pitch))
end

next_command = function()
	local line = commands:read("*l") -- waits
	if not line then return minetest.request_shutdown() end
	local words = line:split(" ")
	for i = 2, #words do words[i] = tonumber(words[i]) or words[i] end
	if words[1] == "ground" then
		ground(words[2], words[3], words[4])
	elseif words[1] == "place" then
		place(words)
	elseif words[1] == "send" then
		send(words[2], words[3], words[4])
	else
		number = number + 1
		asked = {x = words[2], y = words[3], z = words[4], yaw = words[5], pitch = words[6]}
		show()
	end
end

minetest.register_on_modchannel_message(function(name, sender, message)
	if name == "rad_bench" and sender ~= "" and asked and tonumber(message:split(" ")[1]) == number then
		asked = nil
		answer("view " .. message)
	end
end)

minetest.register_globalstep(function(seconds)
	silent = silent + seconds
	if asked and silent > RESEND then show() end
end)

minetest.register_on_joinplayer(function(joined)
	player = joined
	player:hud_set_flags({hotbar = false, healthbar = false, crosshair = false, wielditem = false, breathbar = false,
		minimap = false})
	player:set_physics_override({gravity = 0, speed = 0, jump = 0})
	player:set_armor_groups({immortal = 1})
	player:override_day_night_ratio(1)
	player:set_sky({type = "plain", base_color = "#8fc4f5", clouds = false})
	player:set_sun({visible = false, sunrise_visible = false})
	player:set_moon({visible = false})
	player:set_stars({visible = false})
	local world = minetest.get_worldpath()
	answers, commands = io.open(world .. "/answers", "w"), io.open(world .. "/commands", "r")
	minetest.after(0, next_command)
end)

-- Nothing may depend on the clock. The engine seeds with it the generator of leaves and of trees' rotations.
local function without_chance(decoration)
	local schematic = decoration.schematic
	if schematic then
		schematic = type(schematic) == "string" and minetest.read_schematic(schematic, {}) or table.copy(schematic)
		for _, node in ipairs(schematic.data) do
			node.prob = (node.prob or 254) % 128 < 64 and 0 or 254
		end
		for _, slice in ipairs(schematic.yslice_prob or {}) do slice.prob = 254 end
	end
	local copy = table.copy(decoration)
	copy.schematic, copy.rotation = schematic, schematic and "0" or copy.rotation
	return copy
end

minetest.register_on_mods_loaded(function()
	for i = #minetest.registered_abms, 1, -1 do minetest.registered_abms[i] = nil end -- grass grows, leaves fall
	for _, liquid in ipairs({"water", "river_water"}) do
		local tiles = {"default_" .. liquid .. ".png"} -- without waves
		minetest.override_item("default:" .. liquid .. "_source", {tiles = tiles})
		minetest.override_item("default:" .. liquid .. "_flowing", {special_tiles = {tiles[1], tiles[1]}})
	end
	local decorations = {}
	for name, decoration in pairs(minetest.registered_decorations) do
		local is_insect = tostring(name):find("butterfl") or tostring(name):find("firefl")
		if not is_insect then decorations[#decorations + 1] = without_chance(decoration) end
	end
	-- A decoration's place in the list seeds it. Those without a name have a random number instead.
	local function key(decoration) return decoration.name or tostring(decoration.decoration) end
	table.sort(decorations, function(a, b) return key(a) < key(b) end)
	minetest.clear_registered_decorations()
	for _, decoration in ipairs(decorations) do minetest.register_decoration(decoration) end
end)
