# embed_text(target files header symbol): the files' texts, joined in this order, as a string in a header of the build folder. It
# is cut into literals of a line each: a compiler need not take one of more than 4,095 characters.
function(embed_text target files header symbol)
  set(text "")
  foreach(file IN LISTS files)
    set(source ${CMAKE_CURRENT_SOURCE_DIR}/${file})
    set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source})
    file(READ ${source} part)
    string(APPEND text "${part}")
  endforeach()
  list(JOIN files ", " from)
  string(REPLACE "\\" "\\\\" text "${text}")
  string(REPLACE "\"" "\\\"" text "${text}")
  string(REPLACE "\n" "\\n\"\n    \"" text "${text}")
  file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/embedded/${header}
    CONTENT "/* Made from ${from}. */\n#pragma once\n\nstatic const char ${symbol}[] =\n    \"@text@\";\n" @ONLY)
  target_include_directories(${target} PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/embedded)
endfunction()
