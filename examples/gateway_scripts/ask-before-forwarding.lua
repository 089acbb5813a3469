-- An Orthanc hook: each object that Orthanc stores is shown to the gateway first, and goes on to a modality only if it is clear.
--
-- In orthanc.json:  "LuaScripts": ["/etc/orthanc/ask-before-forwarding.lua"]
-- The gateway needs a caller that may "screen"; its token lies in TOKEN_FILE, readable by Orthanc's user alone.
--
-- It fails closed: no answer, an answer that is no verdict, and every verdict but "clear" leave the object where it is. The verdict
-- is kept beside the object as metadata 1024 (Orthanc: /instances/ID/metadata/1024), so that what was held can be found.

local GATEWAY = "http://127.0.0.1:8080/v1/screen"
local TOKEN_FILE = "/etc/orthanc/lcmem.token"
local MODALITY = "research"
local METADATA = "1024"

local function token()
    local file = io.open(TOKEN_FILE, "r")
    if file == nil then
        print("lcmem: " .. TOKEN_FILE .. " cannot be read: nothing is forwarded")
        return nil
    end
    local text = file:read("*l")
    file:close()
    return text
end

local function verdict_on(instance)
    local secret = token()
    if secret == nil then
        return "error"
    end
    local object = RestApiGet("/instances/" .. instance .. "/file", true)
    if object == nil or object == "" then
        return "error"
    end
    local headers = { ["Authorization"] = "Bearer " .. secret, ["Content-Type"] = "application/dicom" }
    local answer = HttpPost(GATEWAY, object, headers)
    if answer == nil or answer == "" then
        return "error"
    end
    local read, parsed = pcall(ParseJson, answer)
    if not read or type(parsed) ~= "table" or parsed["schema_version"] ~= 1 or type(parsed["verdict"]) ~= "string" then
        return "error"
    end
    return parsed["verdict"]
end

function OnStoredInstance(instance, tags, metadata, origin)
    local asked, verdict = pcall(verdict_on, instance)
    if not asked then
        verdict = "error"
    end
    RestApiPut("/instances/" .. instance .. "/metadata/" .. METADATA, verdict, true)
    if verdict == "clear" then
        SendToModality(instance, MODALITY)
    else
        print("lcmem: " .. instance .. " is held here: " .. verdict)
    end
end
