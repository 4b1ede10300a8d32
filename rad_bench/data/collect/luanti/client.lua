-- Client mod: reports when the view that the server mod asked for has been drawn, and from where the camera saw it.

local DRAWN = 2 -- frames drawn from the place before it is reported
local BLOCK = 16 -- nodes: the side of what the server sends at a time
local RANGE = 37 -- nodes that must have arrived: as far as one sees, from all places of a walk
local BOTTOM = -32 -- the lowest that is made

local channel, asked, drawn = nil, nil, 0

local function join() -- the server drops what comes before it calls the client active
	if channel and channel:is_writeable() then return end
	if channel then channel:leave() end
	channel = minetest.mod_channel_join("rad_bench")
	minetest.after(1, join)
end
minetest.after(1, join)

minetest.register_on_modchannel_message(function(name, _, message)
	if name ~= "rad_bench" then return end
	local words = message:split(" ")
	for i = 1, #words do words[i] = tonumber(words[i]) end
	asked, drawn = {number = words[1], x = words[2], y = words[3], z = words[4], yaw = words[5], pitch = words[6]}, 0
end)

minetest.register_on_receiving_chat_message(function() return true end) -- it would be drawn

local function beyond(centre, low) -- how far a block that begins at `low` is from `centre`, along an axis
	return math.max(low - centre, centre - low - BLOCK, 0)
end

local function missing(place) -- how many blocks around have not arrived yet
	local count = 0
	local first = vector.multiply(vector.floor(vector.divide(vector.subtract(place, RANGE), BLOCK)), BLOCK)
	for x = first.x, place.x + RANGE, BLOCK do
		for y = math.max(first.y, BOTTOM), place.y + RANGE, BLOCK do
			for z = first.z, place.z + RANGE, BLOCK do
				local away = beyond(place.x, x) ^ 2 + beyond(place.y, y) ^ 2 + beyond(place.z, z) ^ 2
				if away < RANGE ^ 2 and not minetest.get_node_or_nil({x = x, y = y, z = z}) then count = count + 1 end
			end
		end
	end
	return count
end

minetest.register_globalstep(function()
	if not asked or not minetest.camera or not channel:is_writeable() then return end
	local place, looks = minetest.camera:get_pos(), minetest.camera:get_look_dir()
	local wanted = {
		x = -math.sin(asked.yaw) * math.cos(asked.pitch), y = math.sin(asked.pitch),
		z = math.cos(asked.yaw) * math.cos(asked.pitch),
	}
	local away = vector.distance(place, asked)
	local is_there = away < 0.01 and vector.distance(looks, wanted) < 0.001
	drawn = is_there and drawn + 1 or 0
	if drawn > DRAWN then
		channel:send_all(("%d %.6f %.6f %.6f %.7f %.7f %.7f %d"):format(
			asked.number, place.x, place.y, place.z, looks.x, looks.y, looks.z, missing(place)))
		asked = nil
	end
end)
