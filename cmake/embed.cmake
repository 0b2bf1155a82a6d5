# embed_text(target file header symbol): the file's text as a string in a header of the build folder. It is cut into literals of a
# line each: a compiler need not take one of more than 4,095 characters.
function(embed_text target file header symbol)
  set(source ${CMAKE_CURRENT_SOURCE_DIR}/${file})
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${source})
  file(READ ${source} text)
  string(REPLACE "\\" "\\\\" text "${text}")
  string(REPLACE "\"" "\\\"" text "${text}")
  string(REPLACE "\n" "\\n\"\n    \"" text "${text}")
  file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/embedded/${header}
    CONTENT "/* Made from ${file}. */\n#pragma once\n\nstatic const char ${symbol}[] =\n    \"@text@\";\n" @ONLY)
  target_include_directories(${target} PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/embedded)
endfunction()
